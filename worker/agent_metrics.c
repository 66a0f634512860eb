/* What a worker answers over HTTP, on at-serve. */
#include "worker/agent_parts.h"

#include "common/metrics.h"

#include <string.h>

static void put_jobs(struct agent *agent, struct buf *out)
{
    int drawing = 0, reporting = 0;
    pthread_mutex_lock(&agent->lock);
    for (const struct held *held = agent->held; held; held = held->next) {
        drawing += held->drawing;
        reporting += held->report != NULL;
    }
    metrics_family(out, "atelier_worker_jobs_total", "counter",
                   "jobs that left this worker, by how");
    metrics_sample(out, "atelier_worker_jobs_total", "state", "done", (double)agent->done);
    metrics_sample(out, "atelier_worker_jobs_total", "state", "failed", (double)agent->failed);
    metrics_sample(out, "atelier_worker_jobs_total", "state", "cancelled",
                   (double)agent->cancelled);
    metrics_sample(out, "atelier_worker_jobs_total", "state", "returned", (double)agent->returned);
    metrics_single(out, "atelier_worker_draining", "gauge", "1 while it takes nothing new",
                   agent->draining);
    pthread_mutex_unlock(&agent->lock);
    metrics_family(out, "atelier_worker_jobs_held", "gauge", "jobs in hand, by what they wait for");
    metrics_sample(out, "atelier_worker_jobs_held", "state", "drawing", drawing);
    metrics_sample(out, "atelier_worker_jobs_held", "state", "reporting", reporting);
}

static void put_engine(struct agent *agent, struct buf *out)
{
    struct pipeline_progress progress = pipeline_progress(agent->pipeline);
    struct memory_use memory = engine_memory(agent->engine);
    metrics_single(out, "atelier_worker_pictures_total", "counter", "pictures stored",
                   (double)progress.pictures_done);
    metrics_single(out, "atelier_worker_steps_total", "counter",
                   "denoising steps, each picture's counted", (double)progress.steps_done);
    metrics_single(out, "atelier_worker_step_seconds", "gauge",
                   "the latest step, of the whole batch", progress.step_s);
    metrics_single(out, "atelier_worker_batch_pictures", "gauge", "pictures in the current batch",
                   progress.active);
    metrics_single(out, "atelier_worker_model_loads_total", "counter", "models loaded",
                   models_load_count(agent->models));
    metrics_family(out, "atelier_worker_memory_bytes", "gauge", "memory of the engine, by use");
    metrics_sample(out, "atelier_worker_memory_bytes", "use", "weights",
                   (double)memory.weights_bytes);
    metrics_sample(out, "atelier_worker_memory_bytes", "use", "activations",
                   (double)memory.activations_bytes);
}

int agent_answer(void *user, const char *path, struct buf *out, const char **type)
{
    struct agent *agent = user;
    if (strcmp(path, "/metrics") == 0) {
        *type = METRICS_TYPE;
        put_jobs(agent, out);
        put_engine(agent, out);
        return 200;
    }
    if (strcmp(path, "/healthz") == 0) {
        buf_str(out, "ok\n");
        return 200;
    }
    buf_str(out, "there are /metrics and /healthz\n");
    return 404;
}
