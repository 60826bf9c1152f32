# Two generations more: one whose app is another release, and one whose app never answers.
{
  nodes.machine = {
    # The driver's machines do not switch of their own accord.
    system.switch.enable = true;
    services.aistack.rollback.policy = "system";
    specialisation = {
      newer.configuration.services.aistack.services.app.environment.GREETING = "hello";
      broken.configuration.services.aistack.services.app.health.path = "/nowhere";
    };
  };
}
