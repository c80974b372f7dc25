"""Figures and report.html, remade from run folders alone."""
