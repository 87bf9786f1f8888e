"""The embedded world: word problems, small models that were pretrained on it, and a weak reasoner's traces."""
