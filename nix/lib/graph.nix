# Questions about the graph of hard dependencies, given as { service = [ dependency … ]; }.
{ lib }:
let
  # The part of a list from the first `name` on.
  from =
    name: names: if names == [ ] || lib.head names == name then names else from name (lib.tail names);

  # Depth first, each node once. `state.done` holds the nodes known to lead into no cycle.
  visit =
    edges: path: state: name:
    if state.cycle != null || state.done ? ${name} then
      state
    else if lib.elem name path then
      state // { cycle = from name path ++ [ name ]; }
    else
      let
        # A name that nobody declared is another error's business.
        after = lib.foldl' (visit edges (path ++ [ name ])) state (edges.${name} or [ ]);
      in
      if after.cycle != null then
        after
      else
        after
        // {
          done = after.done // {
            ${name} = true;
          };
        };
in
{
  # The first cycle found, as [ "a" "b" "a" ], or null.
  cycle =
    edges:
    (lib.foldl' (visit edges [ ]) {
      done = { };
      cycle = null;
    } (lib.attrNames edges)).cycle;
}
