"""Pictures of the feature maps and detections of teacher and students."""
