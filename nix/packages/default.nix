# The overlay: all that this project builds.
final: _prev: {
  aistack = final.callPackage ./aistack.nix { };
  aistack-images = final.callPackage ./images.nix { };
  aistack-bundle = final.callPackage ./bundle.nix { };
  aistack-options = final.callPackage ./options.nix { };
}
