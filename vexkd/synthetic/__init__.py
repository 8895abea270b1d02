"""The embedded data set: a procedural town, its traffic, a LiDAR, six cameras, written in nuScenes' own format."""
