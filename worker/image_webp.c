/* WebP by libwebp; the request travels as an XMP packet, which libwebpmux puts beside the picture.
 */
#include "worker/codec.h"

#include <stdlib.h>
#include <string.h>

#include <webp/decode.h>
#include <webp/encode.h>
#include <webp/mux.h>

static int fail_memory(struct err *err)
{
    return err_set(err, ERR_MEMORY, ERR_RETRY, "WebP: out of memory");
}

int webp_decode(struct image *image, const void *bytes, size_t len, struct err *err)
{
    WebPBitstreamFeatures features;
    *image = (struct image){0};
    if (WebPGetFeatures(bytes, len, &features) != VP8_STATUS_OK)
        return err_set(err, ERR_FORMAT, ERR_REJECT, "WebP: damaged or cut off");
    if (features.has_animation)
        return err_set(err, ERR_UNSUPPORTED, ERR_REJECT, "WebP: an animation, not a picture");
    if (codec_image_make(image, (size_t)features.width, (size_t)features.height, err) != 0)
        return -1;
    size_t row = (size_t)image->width * 3;
    if (!WebPDecodeRGBInto(bytes, len, image->rgb, row * (size_t)image->height, (int)row)) {
        image_release(image);
        return err_set(err, ERR_FORMAT, ERR_REJECT, "WebP: damaged or cut off");
    }
    return 0;
}

static void write_xmp(struct buf *out, const char *request)
{
    buf_str(out, "<x:xmpmeta xmlns:x=\"adobe:ns:meta/\">"
                 "<rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">"
                 "<rdf:Description rdf:about=\"\" xmlns:atelier=\"urn:atelier:job:1\">"
                 "<atelier:request>");
    for (; *request; request++) {
        if (*request == '&')
            buf_str(out, "&amp;");
        else if (*request == '<')
            buf_str(out, "&lt;");
        else if (*request == '>')
            buf_str(out, "&gt;");
        else
            buf_char(out, *request);
    }
    buf_str(out, "</atelier:request></rdf:Description></rdf:RDF></x:xmpmeta>");
}

/* Puts the XMP packet beside the encoded picture. */
static int assemble(const WebPData *picture, const char *request, WebPData *file, struct err *err)
{
    struct buf xmp;
    int rc = -1;
    buf_init(&xmp, 4u << 20);
    write_xmp(&xmp, request);
    WebPMux *mux = WebPMuxNew();
    WebPData packet = {(const uint8_t *)xmp.data, xmp.len};
    if (!xmp.failed && mux && WebPMuxSetImage(mux, picture, 0) == WEBP_MUX_OK &&
        WebPMuxSetChunk(mux, "XMP ", &packet, 1) == WEBP_MUX_OK &&
        WebPMuxAssemble(mux, file) == WEBP_MUX_OK)
        rc = 0;
    WebPMuxDelete(mux);
    buf_release(&xmp);
    return rc == 0 ? 0 : fail_memory(err);
}

int webp_encode(const struct image *image, int quality, const char *request, struct buf *out,
                struct err *err)
{
    uint8_t *bytes = NULL;
    WebPData file = {0};
    size_t len = WebPEncodeRGB(image->rgb, image->width, image->height, image->width * 3,
                               (float)quality, &bytes);
    WebPData picture = {bytes, len};
    int rc = len > 0 ? 0 : fail_memory(err);
    if (rc == 0 && request)
        rc = assemble(&picture, request, &file, err);
    if (rc == 0)
        buf_append(out, request ? file.bytes : bytes, request ? file.size : len);
    if (rc == 0 && out->failed)
        rc = fail_memory(err);
    WebPDataClear(&file);
    WebPFree(bytes);
    return rc;
}
