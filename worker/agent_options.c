#include "worker/agent.h"

#include "engine/engine.h"

#define AT(member) offsetof(struct agent_options, member)

static const char *const log_levels[] = {"error", "warn", "info", "debug", NULL};
static const char *const devices[] = {"auto", "cpu", "cuda", "cuda:N", "dnnl", "ref", NULL};
static const char *const isas[] = {"auto",        "generic",  "avx2", "avx512",
                                   "avx512_bf16", "amx_bf16", NULL};
static const char *const precisions[] = {"auto", "f32", "bf16", NULL};

static const struct conf_row rows[] = {
    SERVICE_ROWS(struct agent_options, services),
    SERVICE_S3_ROWS(struct agent_options, services),
    {"name", CONF_STRING, AT(name), "NAME", NULL, 0, 0, NULL,
     "of this worker, unique in the cell; by default host and process number; -0, -1 … is added "
     "for "
     "several cards"},
    {"device-class", CONF_STRING, AT(device_class), "CLASS", NULL, 0, 0, NULL,
     "what the routing policy calls this machine; by default a CUDA device's own name, and g8i for "
     "any processor"},
    {"models", CONF_STRING, AT(models), "DIR", NULL, 0, 0, NULL,
     "directory of models: folders and .safetensors files, by name (by default `models` beside the "
     "program, its checkout or the working directory)"},
    {"device", CONF_CHOICE, AT(device), "NAME", "auto", 0, 0, devices,
     "what computes; cuda: every card, each as a worker of its own; cuda:N: one of them, from 0"},
    {"isa", CONF_CHOICE, AT(isa), "NAME", "auto", 0, 0, isas, "highest instruction set to use"},
    {"precision", CONF_CHOICE, AT(precision), "NAME", "auto", 0, 0, precisions,
     "arithmetic of the networks; auto is bf16 where it is native"},
    {"threads", CONF_INT, AT(threads), "N", "0", 0, 4096, NULL,
     "threads that compute; 0: one per core"},
    {"memory", CONF_BYTES, AT(memory_bytes), "SIZE", "0", 0, 0, NULL,
     "budget of weights and activations together; 0: the machine's memory"},
    {"batch-max", CONF_INT, AT(batch_max), "N", "0", 0, ENGINE_SESSIONS_MAX, NULL,
     "pictures in one step, as long as they do not fill the device; 0: 4 on a processor, 8 on a "
     "card"},
    {"ahead", CONF_INT, AT(ahead), "N", "2", 1, 64, NULL,
     "pictures beyond those, so that preparing and publishing overlap computing"},
    {"grace", CONF_INT, AT(grace_s), "SECONDS", "20", 0, 86400, NULL,
     "for what is in hand when the worker is to leave; what takes longer is checkpointed"},
    {"confidential", CONF_FLAG, AT(confidential), NULL, NULL, 0, 0, NULL,
     "this machine may draw confidential jobs"},
    {"private-inputs", CONF_FLAG, AT(private_inputs), NULL, NULL, 0, 0, NULL,
     "jobs may name input pictures on this machine's and private networks' addresses"},
    {"cache", CONF_STRING, AT(cache), "DIR", NULL, 0, 0, NULL,
     "where models with a source are fetched to; without it they are not fetched"},
    {"cache-max", CONF_BYTES, AT(cache_max_bytes), "SIZE", "100G", 0, 0, NULL,
     "of that directory; the models that were used longest ago go first"},
    {"metrics-host", CONF_STRING, AT(metrics_host), "ADDRESS", "127.0.0.1", 0, 0, NULL,
     "where to serve /metrics and /healthz; 0.0.0.0: on all of the machine's addresses"},
    {"metrics-port", CONF_INT, AT(metrics_port), "PORT", "0", 0, 65535, NULL,
     "of that, one more for each further card; 0: none"},
    {"log-level", CONF_CHOICE, AT(log_level), "LEVEL", "info", 0, 0, log_levels,
     "the least important that is written"},
};

const struct conf_table agent_table = {
    .command = "atelier-worker",
    .usage = "atelier-worker [options]",
    .summary = "Draws what the cell's coordinator gives it. SIGTERM makes it leave in good order.",
    .rows = rows,
    .row_count = sizeof(rows) / sizeof(rows[0]),
};
