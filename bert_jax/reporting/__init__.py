"""What fine-tuning leaves to look at: tables of scores over seeds, pictures, a page, a model card. Nothing here trains."""
