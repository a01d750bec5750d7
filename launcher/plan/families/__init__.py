"""What families of models are made of: config.json of each, read, and the matrices of its blocks."""
