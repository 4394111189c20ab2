# # grid
