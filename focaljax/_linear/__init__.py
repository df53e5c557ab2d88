"""The last layer and its loss as one operation: chunks of rows or of classes, softmax or sigmoid."""
