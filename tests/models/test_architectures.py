"""Each architecture against finite differences in float64, and a padded batch against its rows."""

from __future__ import annotations

import re
from contextlib import contextmanager

import pytest
import torch
from architectures import CONFIGS, STREAM_BEFORE_MLP, random_contrasts, tiny_model
from peers import alike_in_length, inseq_scores
from project import REPOSITORY
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_attr.attribution.gradient import attribute_batch
from lit_attr.attribution.results import AttributionBatch
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.hooks import first_tensor, replace_first
from lit_attr.models.location import locate

every_architecture = pytest.mark.parametrize("model_type", CONFIGS)
STEP = 1e-5


@pytest.fixture
def float64_throughout(monkeypatch: pytest.MonkeyPatch):
    """Norms and softmaxes compute in float32 also in a float64 model, and its rounding would hide a slope."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    yield
    torch.set_default_dtype(default)


def attribute(model: PreTrainedModel, contrasts: list[Contrast], component: str = "mlp") -> AttributionBatch:
    return attribute_batch(model, locate(model, component=component), collate_contrasts(contrasts))


def decoder_blocks(model: PreTrainedModel) -> list[nn.Module]:
    known = STREAM_BEFORE_MLP[model.config.model_type]
    name = known if isinstance(known, str) else known[0]
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and name in dict(m[0].named_children())]
    assert len(stacks) == 1
    return list(stacks[0])


@contextmanager
def changed_output(module: nn.Module, change):
    handle = module.register_forward_hook(lambda _, __, out: replace_first(out, change(first_tensor(out).clone())))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def logit_difference(model: PreTrainedModel, contrast: Contrast) -> float:
    logits_V = model(torch.tensor([contrast.token_ids]), use_cache=False).logits[0, -1]
    return (logits_V[contrast.true_token_id] - logits_V[contrast.false_token_id]).item()


def slope(model: PreTrainedModel, contrast: Contrast, module: nn.Module, token: int, along_TH: Tensor) -> float:
    """The slope of the logit difference as a module's output at one token moves along a direction."""

    def moved(step: float):
        def change(hidden: Tensor) -> Tensor:
            hidden.view(along_TH.shape)[token] += step * along_TH[token]
            return hidden

        return change

    with changed_output(module, moved(STEP)):
        above = logit_difference(model, contrast)
    with changed_output(module, moved(-STEP)):
        below = logit_difference(model, contrast)
    return (above - below) / (2 * STEP)


def assert_slopes(scores_T: Tensor, slopes_T: Tensor) -> None:
    size = slopes_T.abs().max().item()
    assert size > 1e-3
    torch.testing.assert_close(scores_T, slopes_T, rtol=1e-5, atol=1e-7 * size)


@torch.no_grad()
def mlp_write_TH(model: PreTrainedModel, block: nn.Module, contrast: Contrast) -> Tensor:
    """What the MLP adds to the residual stream: the block's output minus the stream before the MLP."""
    seen: dict[str, Tensor] = {}
    known = STREAM_BEFORE_MLP[model.config.model_type]

    def keep(name: str, tensor: Tensor) -> None:
        seen[name] = tensor.clone().reshape(len(contrast.token_ids), -1)

    def keep_input(name: str):
        return lambda _, args, kwargs: keep(name, args[0] if args else kwargs["hidden_states"])

    hooks = [block.register_forward_hook(lambda _, __, output: keep("after", first_tensor(output)))]
    if isinstance(known, str):
        hooks.append(block.get_submodule(known).register_forward_pre_hook(keep_input("before"), with_kwargs=True))
    else:
        attention = block.get_submodule(known[0])
        hooks.append(block.register_forward_pre_hook(keep_input("before"), with_kwargs=True))
        hooks.append(attention.register_forward_hook(lambda _, __, output: keep("beside", first_tensor(output))))
    model(torch.tensor([contrast.token_ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen["after"] - seen["before"] - seen.get("beside", torch.zeros(()))


@every_architecture
@pytest.mark.usefixtures("float64_throughout")
def test_mlp_scores_are_slopes_along_the_mlps_write(model_type: str):
    """Both the direction and the moved output are those of the residual stream, independent of `locate`."""
    model = tiny_model(model_type, torch.float64)
    (contrast,) = random_contrasts((6,))
    scores_LT = attribute(model, [contrast]).scores_sum_BLT[0]
    for layer, block in enumerate(decoder_blocks(model)):
        write_TH = mlp_write_TH(model, block, contrast)
        slopes_T = torch.tensor([slope(model, contrast, block, token, write_TH) for token in range(6)])
        assert_slopes(scores_LT[layer], slopes_T)


@every_architecture
@pytest.mark.usefixtures("float64_throughout")
def test_attention_scores_are_slopes_along_the_attentions_write(model_type: str):
    model = tiny_model(model_type, torch.float64)
    (contrast,) = random_contrasts((6,))
    location = locate(model, component="attention")
    scores_LT = attribute(model, [contrast], "attention").scores_sum_BLT[0]
    for layer, module in enumerate(location.modules):
        written: list[Tensor] = []
        with torch.no_grad(), changed_output(module, lambda hidden, w=written: w.append(hidden.clone()) or hidden):
            model(torch.tensor([contrast.token_ids]), use_cache=False)
        write_TH = written[0].reshape(6, -1)
        slopes_T = torch.tensor([slope(model, contrast, module, token, write_TH) for token in range(6)])
        assert_slopes(scores_LT[layer], slopes_T)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        *((model_type, {}) for model_type in CONFIGS),
        ("gpt2", {"tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": True}),
        ("gemma2", {"final_logit_softcapping": None}),
    ],
)
def test_logits_are_the_models_own(model_type: str, settings: dict):
    """Including tied embeddings, and a cap or a scale of the logits."""
    model = tiny_model(model_type, **settings)
    contrasts = random_contrasts((5, 9, 2))
    batch = attribute(model, contrasts)
    for row, contrast in enumerate(contrasts):
        found = (batch.logit_true_B[row] - batch.logit_false_B[row]).item()
        assert found == pytest.approx(logit_difference(model, contrast), rel=1e-4, abs=1e-4)


@pytest.mark.usefixtures("float64_throughout")
@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("gpt2", {"tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": True}),
        ("gemma2", {"final_logit_softcapping": 1.0}),
        ("cohere", {"logit_scale": 3.0}),
    ],
)
def test_scores_include_what_comes_after_the_last_block(model_type: str, settings: dict):
    model = tiny_model(model_type, torch.float64, **settings)
    (contrast,) = random_contrasts((6,))
    scores_LT = attribute(model, [contrast]).scores_sum_BLT[0]
    block = decoder_blocks(model)[-1]
    write_TH = mlp_write_TH(model, block, contrast)
    assert_slopes(scores_LT[-1], torch.tensor([slope(model, contrast, block, t, write_TH) for t in range(6)]))


@every_architecture
@pytest.mark.parametrize("component", ["mlp", "attention"])
def test_a_padded_batch_has_the_scores_of_its_rows_alone(model_type: str, component: str):
    model = tiny_model(model_type)
    contrasts = random_contrasts((9, 3, 6, 1, 9))
    together = attribute(model, contrasts, component)
    for row, contrast in enumerate(contrasts):
        alone, width = attribute(model, [contrast], component), len(contrast.token_ids)
        for name in ("scores_sum_BLT", "scores_l2_BLT"):
            one_LT, many_LT = getattr(alone, name)[0], getattr(together, name)[row]
            torch.testing.assert_close(
                many_LT[:, :width], one_LT, rtol=1e-5, atol=1e-5 * one_LT.abs().max().item()
            )
            assert not many_LT[:, width:].any()
        torch.testing.assert_close(together.logit_true_B[row], alone.logit_true_B[0], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "model_type", ["gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "qwen2", "phi", "stablelm"]
)
def test_equals_inseq(model_type: str, tokenizer: PreTrainedTokenizerBase, sample_contrasts: list[Contrast]):
    model = tiny_model(model_type, vocab_size=len(tokenizer), bos_token_id=tokenizer.eos_token_id)
    contrasts = alike_in_length(sample_contrasts, tokenizer)[::40][:6]
    location = locate(model)
    scores = attribute_batch(model, location, collate_contrasts(contrasts))
    for layer, path in enumerate(location.paths):
        for row, (sums_T, norms_T) in enumerate(inseq_scores(model, tokenizer, path, contrasts)):
            width = len(contrasts[row].tokens)
            ours_sum_T = scores.scores_sum_BLT[row, layer, :width]
            ours_l2_T = scores.scores_l2_BLT[row, layer, :width]
            assert norms_T.max() > 1e-3
            torch.testing.assert_close(ours_sum_T, sums_T, rtol=0, atol=1e-4 * sums_T.abs().max().item())
            torch.testing.assert_close(ours_l2_T, norms_T, rtol=0, atol=1e-4 * norms_T.max().item())


def test_the_docs_list_where_each_architecture_writes():
    page = (REPOSITORY / "docs" / "models.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \| `([\w.]+)` \|", page, re.M)
    expected = []
    for model_type in CONFIGS:
        model = tiny_model(model_type)
        paths = [locate(model, layers=1, component=component).paths[0] for component in ("mlp", "attention")]
        expected.append((model_type, *(path.partition(".1.")[2] for path in paths)))
    assert rows == expected
