"""What the tensor axis stands on: cuts carried through the calls between two linear maps."""
