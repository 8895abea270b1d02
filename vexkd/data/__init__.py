"""From nuScenes on disk to `batch.Sample`: checks, indices, point clouds, images, augmentation and loading."""
