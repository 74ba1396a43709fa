"""Corpora, manifests, tasks and labels. No torch."""
