# A generation more, whose app never answers.
{
  nodes.machine = {
    # The driver's machines do not switch of their own accord.
    system.switch.enable = true;
    specialisation.broken.configuration.services.aistack.services.app.health.path = "/nowhere";
  };
}
