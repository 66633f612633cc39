"""The entry point of the Attributions tab, imported whenever TensorBoard starts: it imports next to nothing."""

from __future__ import annotations

import logging

from tensorboard.plugins.base_plugin import TBContext, TBLoader, TBPlugin

logger = logging.getLogger("lit_attr")


class AttributionsLoader(TBLoader):  # type: ignore[misc]  # TensorBoard has no types
    """Loads the plugin, or leaves TensorBoard without the tab where it cannot be imported."""

    def load(self, context: TBContext) -> TBPlugin | None:
        """The plugin, or None after a warning of one line."""
        try:
            from lit_attr.views.tab.plugin import AttributionsPlugin
        except ImportError as error:
            logger.warning("TensorBoard has no tab Attributions: %s; install lit-attr again", error)
            return None
        return AttributionsPlugin(context)
