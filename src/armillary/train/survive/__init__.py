"""What is watched while a run goes on, and what is said and done when it goes wrong."""
