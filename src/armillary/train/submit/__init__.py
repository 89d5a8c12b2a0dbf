"""Jobs: a site's job script written from its file, submitted, and followed. None needs torch."""
