/* What a second pass makes of a job's size and work. */
#include "schema/job.h"

#include <math.h>

#define MULTIPLE 8 /* of both sides */

bool job_has_hires(const struct job *job)
{
    return job->hires.scale > 0 || job->hires.width > 0;
}

/* One side of the picture: the first pass has `size`, the second one `wanted` or `scale` of it. */
static int final_side(int size, int wanted, double scale)
{
    if (wanted > 0)
        return wanted;
    return scale > 0 ? MULTIPLE * (int)lround(size * scale / MULTIPLE) : size;
}

void job_final_size(const struct job *job, int *width, int *height)
{
    const struct job_hires *hires = &job->hires;
    *width = final_side(job->width, hires->width, hires->scale);
    *height = final_side(job->height, hires->height, hires->scale);
}

double job_pixel_steps(const struct job *job, int width, int height, int steps)
{
    const struct job_hires *hires = &job->hires;
    double first = (double)width * height * steps, again;
    if (!job_has_hires(job))
        return first;
    again = (double)final_side(width, hires->width, hires->scale) *
            final_side(height, hires->height, hires->scale);
    return first + again * (hires->steps ? hires->steps : steps) * hires->strength;
}
