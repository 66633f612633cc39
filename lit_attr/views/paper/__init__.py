"""Figures for print, drawn by matplotlib from the records of runs."""
