"""Task prompts of the T5 paper (arXiv 1910.10683 appendix D): records as inputs and targets."""
