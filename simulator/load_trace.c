/*
 * load_trace.c: a production trace in the form of GenTD26's requests.csv: arrival, tenant, model,
 * steps and pictures are taken, whatever became of the request then. It has no sizes: the model
 * says them. Execution seconds are not used: they are of other machines and may include waiting.
 */
#include "simulator/load.h"

#include "common/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum column { ARRIVAL, TENANT, IMAGES, STEPS, MODEL, COLUMNS };

static const char *const column_names[COLUMNS] = {"gmt_create", "groupId", "num_images_per_prompt",
                                                  "num_inference_steps",
                                                  "checkpoint_model_version_id"};

#define FIELD_MAX_BYTES 128

/* The field at a place of a line, "" past its end. No field of these files is quoted. */
static void field_at(const char *text, size_t len, int place, char out[FIELD_MAX_BYTES])
{
    const char *at = text, *end = text + len;
    for (; place > 0 && at < end; at++)
        place -= *at == ',';
    size_t size = 0;
    while (at < end && *at != ',' && *at != '\r' && size < FIELD_MAX_BYTES - 1)
        out[size++] = *at++;
    out[size] = '\0';
}

int load_trace_header(struct load *load, const char *text, size_t len, struct err *err)
{
    char field[FIELD_MAX_BYTES];
    int columns = 1;
    for (size_t i = 0; i < len; i++)
        columns += text[i] == ',';
    for (int c = 0; c < COLUMNS; c++) {
        load->trace_columns[c] = -1;
        for (int place = 0; place < columns; place++) {
            field_at(text, len, place, field);
            if (strcmp(field, column_names[c]) == 0)
                load->trace_columns[c] = place;
        }
        if (load->trace_columns[c] < 0)
            return err_set(err, ERR_FORMAT, ERR_FATAL,
                           "is neither a job, {…}, nor the header of a GenTD26 trace: there is no "
                           "column \"%s\"",
                           column_names[c]);
    }
    load->is_trace = true;
    return 0;
}

static void read_field(const struct load *load, const char *text, size_t len, enum column column,
                       char out[FIELD_MAX_BYTES])
{
    field_at(text, len, load->trace_columns[column], out);
}

/* "2024-11-15 16:57:50", taken as UTC. */
static int read_time(struct load *load, const char *field, struct load_job *job, struct err *err)
{
    char text[CLOCK_RFC3339_BYTES];
    snprintf(text, sizeof(text), "%.10sT%.8sZ", field, strlen(field) > 11 ? field + 11 : "");
    if (!clock_parse_rfc3339(text, &job->arrival_ns))
        return err_set(err, ERR_FORMAT, ERR_REJECT,
                       "gmt_create: \"%s\" is no time such as 2024-11-15 16:57:50", field);
    load->has_wall_times = true;
    if (job->arrival_ns < load->first_ns)
        load->first_ns = job->arrival_ns;
    return 0;
}

/* Counts are written as "30.0"; one that is left out is the fallback. */
static int read_count(const char *field, enum column column, long most, long fallback, long *out,
                      struct err *err)
{
    char *end;
    double value = strtod(field, &end);
    *out = field[0] ? (long)value : fallback;
    if (field[0] && (*end || value < 1 || value > (double)most))
        return err_set(err, ERR_INVALID, ERR_REJECT, "%s: \"%s\" is no number, 1 … %ld",
                       column_names[column], field, most);
    return 0;
}

int load_trace_line(struct load *load, const char *text, size_t len, struct load_job *job,
                    struct err *err)
{
    char field[FIELD_MAX_BYTES];
    long images, steps;
    read_field(load, text, len, ARRIVAL, field);
    if (read_time(load, field, job, err) != 0)
        return -1;
    read_field(load, text, len, MODEL, field);
    job->model = fleet_model(load->fleet, field[0] ? field : "unknown", err);
    if (job->model == NAMES_NONE)
        return -1;
    const struct catalogue_model *model = &load->fleet->models[job->model];
    read_field(load, text, len, IMAGES, field);
    if (read_count(field, IMAGES, JOB_IMAGES_MAX, 1, &images, err) != 0)
        return -1;
    read_field(load, text, len, STEPS, field);
    if (read_count(field, STEPS, 500, model->steps ? model->steps : DEMAND_STEPS, &steps, err) != 0)
        return -1;
    job->images = (uint8_t)images;
    job->steps = (uint16_t)steps;
    job->width = (uint16_t)(model->width ? model->width : DEMAND_SIDE);
    job->height = (uint16_t)(model->height ? model->height : DEMAND_SIDE);
    job->guided = model->guidance_scale > 1 || model->guidance_scale < 0;
    read_field(load, text, len, TENANT, field);
    job->tenant = names_enter(&load->tenants, field[0] ? field : "default");
    if (job->tenant == NAMES_NONE)
        return err_set(err, ERR_LIMIT, ERR_FATAL, "groupId: more than %d tenants",
                       LOAD_TENANTS_MAX);
    return 0;
}
