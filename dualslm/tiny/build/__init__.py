"""Makes the made world anew: its LLM, its encoder, its recordings, its adapters and their figures."""
