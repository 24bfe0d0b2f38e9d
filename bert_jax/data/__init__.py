"""Text to batches: sources -> sentences -> store (prepare, writer) -> pairs -> loader, one module each."""
