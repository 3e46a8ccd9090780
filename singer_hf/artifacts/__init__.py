"""What an artifact token is and how it is measured; planting of artifacts for tests."""
