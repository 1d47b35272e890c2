"""How linear layers, sharded weights and checkpointing are computed."""
