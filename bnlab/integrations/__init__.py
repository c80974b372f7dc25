"""Callbacks for trainers of other libraries; each needs its extra: `pip install "bnlab[lightning]"`."""
