"""Images in any form as batches of pixel values for a frozen model."""
