"""From manifests to trained adapters: examples, frames, targets, the loop."""
