"""The model: frozen encoder, two adapters, frozen LLM, loss and generation."""
