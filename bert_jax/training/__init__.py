"""The one training loop and what it needs: experiment values, optimisers, work directories, records."""
