"""Training of the frozen-network paper's models (Otsuka et al., arXiv 2402.14029) and of their dense baselines."""
