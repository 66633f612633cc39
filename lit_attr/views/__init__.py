"""What is seen: heatmaps, scatter plots, curves, figures for papers, pages of text."""
