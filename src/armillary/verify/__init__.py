"""The parallel program against the serial one, on local ranks, in float64."""
