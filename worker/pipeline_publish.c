/* The last stage: pixels to files, then the manifest, then the task goes back to its owner. */
#include "common/file.h"
#include "common/sha256.h"
#include "worker/codec.h"
#include "worker/holding.h"
#include "worker/pipeline_parts.h"
#include "worker/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int write_dump(const struct pipeline *pipeline, const struct picture *picture,
                      struct err *err)
{
    char name[JOB_NAME_MAX_BYTES + 32], path[FILE_PATH_MAX_BYTES];
    if (picture->index == 0)
        snprintf(name, sizeof(name), "%s.safetensors", picture->task->job.id);
    else
        snprintf(name, sizeof(name), "%s.%d.safetensors", picture->task->job.id, picture->index);
    if (file_join(path, pipeline->options.dump_dir, name, err) != 0)
        return -1;
    return stage_dump_write(&picture->dump, path, err);
}

static int encode_request(const struct job *job, struct buf *out, struct err *err)
{
    job_encode(job, out);
    return out->failed ? err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory to encode a request")
                       : 0;
}

/* Encodes, names and writes one picture. */
static int publish_picture(const struct pipeline *pipeline, struct picture *picture,
                           struct err *err)
{
    struct task *task = picture->task;
    const struct job *job = &task->job;
    struct manifest_file *file = &task->files[picture->index];
    const char *extension = strcmp(job->output.format, "jpeg") == 0 ? "jpg" : job->output.format;
    struct buf bytes, request;
    int rc = -1;
    buf_init(&bytes, CODEC_FILE_MAX_BYTES);
    buf_init(&request, JOB_ENCODED_MAX_BYTES);
    if (job->output.metadata && encode_request(job, &request, err) != 0)
        goto out;
    if (codec_encode(&picture->image, job->output.format, job->output.quality,
                     job->output.metadata ? request.data : NULL, &bytes, err) != 0)
        goto out;
    char hex[SHA256_HEX_BYTES];
    sha256_hex(hex, bytes.data, bytes.len);
    memcpy(file->sha256, hex, sizeof(hex));
    snprintf(file->name, sizeof(file->name), "%d-%s.%s", picture->index, hex, extension);
    file->bytes = bytes.len;
    file->seed = (uint64_t)job->seed + (uint64_t)picture->index;
    file->width = picture->image.width;
    file->height = picture->image.height;
    rc = store_put(pipeline->options.store, job->id, file->name, bytes.data, bytes.len, err);
    if (rc == 0 && picture->dumping)
        rc = write_dump(pipeline, picture, err);
out:
    buf_release(&request);
    buf_release(&bytes);
    return rc;
}

/* Another attempt was first: its result is the job's. */
int pipeline_adopt(const struct pipeline *pipeline, struct task *task, struct err *err)
{
    const struct job *job = &task->job;
    struct manifest_view view = {0};
    struct buf text;
    buf_init(&text, MANIFEST_MAX_BYTES);
    int rc = store_manifest(pipeline->options.store, job->id, &text, err);
    if (rc == 0)
        rc = manifest_read(&view, text.data, text.len, err);
    if (rc == 0 &&
        (view.content != job->content ||
         manifest_view_files(&view, task->files, (size_t)job->images) != (size_t)job->images))
        rc = err_set(err, ERR_CONFLICT, ERR_REJECT,
                     "another request's pictures are stored under the id %s", job->id);
    task->adopted = rc == 0;
    manifest_view_release(&view);
    buf_release(&text);
    return rc;
}

/* Leftovers that cannot be removed stay: nobody sees them, and the next attempt's sweep tries. */
static void sweep(const struct pipeline *pipeline, const struct task *task)
{
    struct err err;
    int rc = store_sweep(pipeline->options.store, task->job.id, &err);
    (void)rc;
}

static int publish_manifest(const struct pipeline *pipeline, struct task *task, struct err *err)
{
    const struct pipeline_options *options = &pipeline->options;
    const struct engine_info *engine = engine_info(options->engine);
    const struct job *job = &task->job;
    struct buf request, text;
    int rc = -1;
    buf_init(&request, JOB_ENCODED_MAX_BYTES);
    buf_init(&text, MANIFEST_MAX_BYTES);
    task->times.total_s = seconds_since(pipeline, task->started_mono_ns);
    if (encode_request(job, &request, err) != 0)
        goto out;
    struct manifest manifest = {.id = job->id,
                                .batch = job->batch,
                                .tenant = job->tenant,
                                .request = request.data,
                                .content = job->content,
                                .files = task->files,
                                .file_count = (size_t)job->images,
                                .device_class =
                                    options->device_class ? options->device_class : "cpu",
                                .processor = engine->processor,
                                .backend = engine->backend,
                                .isa = engine->isa,
                                .precision = support_precision_name(engine->precision),
                                .model_family = model_info(task->held)->family,
                                .engine_version = engine_version(),
                                .attempt = task->attempt,
                                .traceparent = task->traceparent,
                                .predicted_price = task->price,
                                .started_ns = task->started_wall_ns,
                                .finished_ns = clock_wall_ns(options->clock),
                                .times = task->times,
                                .predicted_s = task->predicted_s,
                                .actual_s = task->times.compute_s};
    manifest_write(&manifest, &text);
    if (text.failed) {
        err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory for a manifest");
        goto out;
    }
    rc = store_finish(options->store, job->id, text.data, text.len, err);
    bool first = rc == 0;
    if (rc != 0 && err->code == ERR_CONFLICT)
        rc = pipeline_adopt(pipeline, task, err);
    if (rc == 0 && (!first || task->attempt > 1))
        sweep(pipeline, task);
out:
    buf_release(&text);
    buf_release(&request);
    return rc;
}

static void finish_task(struct pipeline *pipeline, struct task *task)
{
    struct err err;
    pthread_mutex_lock(&pipeline->lock);
    bool failed = task->failed, handing_back = pipeline->handing_back;
    pthread_mutex_unlock(&pipeline->lock);
    if (!failed && task->adopted) {
        sweep(pipeline, task);
    } else if (!failed && publish_manifest(pipeline, task, &err) != 0) {
        task_fail(pipeline, task, &err);
        failed = true;
    }
    if (failed && handing_back)
        saved_add_files(pipeline, task);
    if (failed)
        sweep(pipeline, task);
    holding_let_go(&pipeline->options, task);
    free(task->pictures);
    task->pictures = NULL;
    task_give_back(pipeline, task);
}

void *publish_main(void *user)
{
    struct pipeline *pipeline = user;
    struct picture *picture;
    while ((picture = bounded_queue_take(&pipeline->drawn)) != NULL) {
        struct task *task = picture->task;
        struct err err;
        int64_t begin = clock_monotonic_ns(pipeline->options.clock);
        /* A stop lets what is drawn be published: only a failure of the task itself counts. */
        pthread_mutex_lock(&pipeline->lock);
        bool lost = task->failed || !picture->image.rgb;
        task->stage = TASK_PUBLISHING;
        pthread_mutex_unlock(&pipeline->lock);
        if (!lost && publish_picture(pipeline, picture, &err) != 0) {
            task_fail(pipeline, task, &err);
            lost = true;
        }
        task->times.compute_s += picture->compute_s;
        task->times.publish_s += seconds_since(pipeline, begin);
        image_release(&picture->image);
        if (picture->dumping)
            stage_dump_release(&picture->dump);
        pthread_mutex_lock(&pipeline->lock);
        pipeline->progress.pictures_done += !lost;
        pthread_mutex_unlock(&pipeline->lock);
        if (--task->pictures_left == 0)
            finish_task(pipeline, task);
    }
    return NULL;
}
