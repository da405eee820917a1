"""Fine-tuning: losses, optimizer, the LightningModule, its strategy and callbacks."""
