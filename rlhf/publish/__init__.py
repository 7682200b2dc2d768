"""What `rlhf push` uploads to the Hugging Face Hub, and the upload."""
