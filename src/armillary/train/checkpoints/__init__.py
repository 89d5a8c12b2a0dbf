"""What a run keeps of its state: sharded, whole or absent, checked when it is read, sent on."""
