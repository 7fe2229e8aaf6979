"""Thresholds and packed masks, whole or sharded over processes: plain tensors, no modules."""
