//! Image decoding and Pillow-exact preprocessing.
