"""What focaljax costs, measured against what people use today."""
