"""`medret demo`: a synthetic archive, indexed, searched and shown."""
