/* JPEG by libjpeg-turbo. Its errors arrive by longjmp; everything they may skip lives in `work`. */
#include "worker/codec.h"
#include "worker/exif.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#define COMMENT_MAX_BYTES 65533

struct work {
    struct jpeg_error_mgr manager; /* first: the library hands back its address */
    jmp_buf back;
    char message[JMSG_LENGTH_MAX];
};

static void on_error(j_common_ptr info)
{
    struct work *work = (struct work *)info->err;
    info->err->format_message(info, work->message);
    longjmp(work->back, 1);
}

/* Damaged data is only a warning to the library, and gives grey areas. */
static void on_message(j_common_ptr info, int level)
{
    if (level < 0)
        on_error(info);
}

static void watch(struct work *work)
{
    jpeg_std_error(&work->manager);
    work->manager.error_exit = on_error;
    work->manager.emit_message = on_message;
}

static int orientation_of(const struct jpeg_decompress_struct *info)
{
    static const char EXIF[] = "Exif\0"; /* and another zero */
    for (const struct jpeg_marker_struct *m = info->marker_list; m; m = m->next)
        if (m->marker == JPEG_APP0 + 1 && m->data_length >= sizeof(EXIF) &&
            memcmp(m->data, EXIF, sizeof(EXIF)) == 0)
            return exif_orientation(m->data + sizeof(EXIF), m->data_length - sizeof(EXIF));
    return 1;
}

int jpeg_decode(struct image *image, const void *bytes, size_t len, struct err *err)
{
    struct work work;
    struct jpeg_decompress_struct info;
    *image = (struct image){0};
    watch(&work);
    info.err = &work.manager;
    if (setjmp(work.back) != 0) {
        jpeg_destroy_decompress(&info);
        image_release(image);
        return err_set(err, ERR_FORMAT, ERR_REJECT, "JPEG: damaged or cut off (%s)", work.message);
    }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, bytes, len);
    jpeg_save_markers(&info, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(&info, TRUE);
    if (codec_image_make(image, info.image_width, info.image_height, err) != 0) {
        jpeg_destroy_decompress(&info);
        return -1;
    }
    if (info.num_components == 4) {
        jpeg_destroy_decompress(&info);
        image_release(image);
        return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                       "JPEG: a CMYK picture; convert it to RGB first");
    }
    info.out_color_space = JCS_RGB;
    info.dct_method = JDCT_ISLOW;
    jpeg_start_decompress(&info);
    while (info.output_scanline < info.output_height) {
        JSAMPROW row = image->rgb + (size_t)info.output_scanline * (size_t)image->width * 3;
        jpeg_read_scanlines(&info, &row, 1);
    }
    int orientation = orientation_of(&info); /* finishing forgets its markers */
    jpeg_finish_decompress(&info);
    jpeg_destroy_decompress(&info);
    return image_upright(image, orientation, err);
}

static void write_comments(struct jpeg_compress_struct *info, const char *request)
{
    size_t left = strlen(request);
    while (left > 0) {
        size_t part = left < COMMENT_MAX_BYTES ? left : COMMENT_MAX_BYTES;
        jpeg_write_marker(info, JPEG_COM, (const JOCTET *)request, (unsigned)part);
        request += part;
        left -= part;
    }
}

int jpeg_encode(const struct image *image, int quality, const char *request, struct buf *out,
                struct err *err)
{
    struct work work;
    struct jpeg_compress_struct info;
    /* Changed between setjmp and longjmp by the library, through its address. */
    unsigned char *volatile file = NULL;
    unsigned long file_len = 0;
    watch(&work);
    info.err = &work.manager;
    if (setjmp(work.back) != 0) {
        jpeg_destroy_compress(&info);
        free(file);
        return err_set(err, ERR_MEMORY, ERR_RETRY, "JPEG: %s", work.message);
    }
    jpeg_create_compress(&info);
    jpeg_mem_dest(&info, (unsigned char **)&file, &file_len);
    info.image_width = (JDIMENSION)image->width;
    info.image_height = (JDIMENSION)image->height;
    info.input_components = 3;
    info.in_color_space = JCS_RGB;
    jpeg_set_defaults(&info);
    jpeg_set_quality(&info, quality, TRUE);
    info.optimize_coding = TRUE;
    jpeg_start_compress(&info, TRUE);
    if (request)
        write_comments(&info, request);
    while (info.next_scanline < info.image_height) {
        JSAMPROW row = image->rgb + (size_t)info.next_scanline * (size_t)image->width * 3;
        jpeg_write_scanlines(&info, &row, 1);
    }
    jpeg_finish_compress(&info);
    jpeg_destroy_compress(&info);
    buf_append(out, file, file_len);
    free(file);
    return out->failed ? err_set(err, ERR_MEMORY, ERR_RETRY, "JPEG: out of memory") : 0;
}
