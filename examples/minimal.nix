# The least there is to say: the whole catalog, with a model at
# /var/lib/aistack/models/qwen2.5-coder-7b-instruct-q4_k_m.gguf.
{
  services.aistack.enable = true;
  services.aistack.secrets.POSTGRES_PASSWORD.file = "/run/secrets/postgres-password";
}
