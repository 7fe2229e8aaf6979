"""From a plain model to a frozen one and back: freeze, spread of ratios, folding of batch norm, dense copies."""
