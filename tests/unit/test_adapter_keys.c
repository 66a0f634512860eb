/*
 * The spellings of adapter files against the names of models of the published structures: what
 * trainers wrote is found, what they never wrote is not.
 */
#include "engine/adapter.h"
#include "engine/runtime.h"

#include "tests/unit/unit.h"

#include <stdio.h>
#include <string.h>

/* The names of a family, made as its published UNet is built. */
struct names {
    struct adapter_keys *keys;
    struct ldm_layout layout;
    char list[3000][CHECKPOINT_NAME_MAX_BYTES];
    int count;
    bool alone;
};

static struct names names;

static void add(enum component component, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void add(enum component component, const char *format, ...)
{
    struct err err;
    va_list args;

    va_start(args, format);
    vsnprintf(names.list[names.count], CHECKPOINT_NAME_MAX_BYTES, format, args);
    va_end(args);
    assert_int_equal(adapter_keys_add(names.keys, component, names.count, names.list[names.count],
                                      &names.layout, names.alone, &err),
                     0);
    names.count++;
}

static void add_resnet(const char *at, bool shortcut)
{
    add(COMPONENT_UNET, "%s.conv1", at);
    add(COMPONENT_UNET, "%s.time_emb_proj", at);
    add(COMPONENT_UNET, "%s.conv2", at);
    if (shortcut)
        add(COMPONENT_UNET, "%s.conv_shortcut", at);
}

static void add_transformer(const char *at, int depth)
{
    static const char *const PARTS[] = {
        "attn1.to_q", "attn1.to_k", "attn1.to_v",     "attn1.to_out.0", "attn2.to_q",
        "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "ff.net.0.proj",  "ff.net.2"};

    add(COMPONENT_UNET, "%s.proj_in", at);
    add(COMPONENT_UNET, "%s.proj_out", at);
    for (int i = 0; i < depth; i++)
        for (int j = 0; j < 10; j++)
            add(COMPONENT_UNET, "%s.transformer_blocks.%d.%s", at, i, PARTS[j]);
}

static void add_unet(int levels, const int *depth)
{
    char at[96];

    add(COMPONENT_UNET, "conv_in");
    add(COMPONENT_UNET, "conv_out");
    add(COMPONENT_UNET, "time_embedding.linear_1");
    add(COMPONENT_UNET, "time_embedding.linear_2");
    for (int i = 0; i < levels; i++) {
        for (int j = 0; j < 2; j++) {
            snprintf(at, sizeof(at), "down_blocks.%d.resnets.%d", i, j);
            add_resnet(at, i > 0 && j == 0);
            snprintf(at, sizeof(at), "down_blocks.%d.attentions.%d", i, j);
            if (depth[i] > 0)
                add_transformer(at, depth[i]);
        }
        if (i + 1 < levels)
            add(COMPONENT_UNET, "down_blocks.%d.downsamplers.0.conv", i);
        for (int j = 0; j < 3; j++) {
            snprintf(at, sizeof(at), "up_blocks.%d.resnets.%d", i, j);
            add_resnet(at, true);
            snprintf(at, sizeof(at), "up_blocks.%d.attentions.%d", i, j);
            if (depth[levels - 1 - i] > 0)
                add_transformer(at, depth[levels - 1 - i]);
        }
        if (i + 1 < levels)
            add(COMPONENT_UNET, "up_blocks.%d.upsamplers.0.conv", i);
        names.layout.up_attention[i] = depth[levels - 1 - i] > 0;
    }
    add_resnet("mid_block.resnets.0", false);
    add_resnet("mid_block.resnets.1", false);
    add_transformer("mid_block.attentions.0", depth[levels - 1] > 0 ? depth[levels - 1] : 1);
}

static void add_text(enum component component, int layers)
{
    static const char *const PARTS[] = {"self_attn.q_proj", "self_attn.k_proj",
                                        "self_attn.v_proj", "self_attn.out_proj",
                                        "mlp.fc1",          "mlp.fc2"};

    for (int i = 0; i < layers; i++)
        for (int j = 0; j < 6; j++)
            add(component, "text_model.encoder.layers.%d.%s", i, PARTS[j]);
}

static void begin(int levels, const int *depth, bool xl, bool alone)
{
    struct err err;

    memset(&names, 0, sizeof(names));
    names.alone = alone;
    names.layout.unet = "";
    names.layout.layers = 2;
    assert_int_equal(adapter_keys_create(&names.keys, &err), 0);
    for (int i = 0; i < levels; i++)
        names.layout.up_attention[i] = depth[levels - 1 - i] > 0;
    add_unet(levels, depth);
    if (xl) {
        add(COMPONENT_UNET, "add_embedding.linear_1");
        add(COMPONENT_UNET, "add_embedding.linear_2");
    }
}

static void seal(void)
{
    struct err err;

    assert_int_equal(adapter_keys_seal(names.keys, &err), 0);
}

static void finds(const char *key, enum component component, const char *name,
                  enum adapter_role role)
{
    struct adapter_key found;

    if (!adapter_keys_find(names.keys, key, &found))
        fail_msg("'%s' is not found", key);
    if (found.component != component || found.role != role ||
        strcmp(names.list[found.number], name) != 0)
        fail_msg("'%s' is taken for %s, role %d", key, names.list[found.number], found.role);
}

static void misses(const char *key)
{
    struct adapter_key found;

    if (adapter_keys_find(names.keys, key, &found))
        fail_msg("'%s' is taken for %s", key, names.list[found.number]);
}

static void test_sd1(void **state)
{
    static const int DEPTH[] = {1, 1, 1, 0};
    static const char *const TO_OUT =
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0";
    static const char *const TO_Q = "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_q";
    static const char *const TEXT = "text_model.encoder.layers.11.self_attn.q_proj";

    (void)state;
    begin(4, DEPTH, false, true);
    add_text(COMPONENT_TEXT, 12);
    seal();
    finds(
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight",
        COMPONENT_UNET, TO_OUT, ROLE_DOWN);
    finds("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.alpha",
          COMPONENT_UNET, TO_OUT, ROLE_ALPHA);
    finds("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up."
          "weight",
          COMPONENT_UNET, TO_OUT, ROLE_UP);
    finds("down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight",
          COMPONENT_UNET, TO_OUT, ROLE_UP);
    finds("unet.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_q.lora_A.weight",
          COMPONENT_UNET, TO_Q, ROLE_DOWN);
    finds(
        "base_model.model.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_q.lora_B.default."
        "weight",
        COMPONENT_UNET, TO_Q, ROLE_UP);
    finds("unet.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_q.lora_A.my_style.weight",
          COMPONENT_UNET, TO_Q, ROLE_DOWN);
    finds("unet.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_q.lora.down.weight",
          COMPONENT_UNET, TO_Q, ROLE_DOWN);
    finds(
        "unet.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_q.lora_linear_layer.up.weight",
        COMPONENT_UNET, TO_Q, ROLE_UP);
    finds("unet.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_q.lora_magnitude_vector",
          COMPONENT_UNET, TO_Q, ROLE_MAGNITUDE);
    finds("unet.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_q.lora_magnitude_vector."
          "default.weight",
          COMPONENT_UNET, TO_Q, ROLE_MAGNITUDE);
    finds("diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_q.lora_up.weight",
          COMPONENT_UNET, TO_Q, ROLE_UP);
    finds("lora_te_text_model_encoder_layers_11_self_attn_q_proj.lora_up.weight", COMPONENT_TEXT,
          TEXT, ROLE_UP);
    finds("text_encoder.text_model.encoder.layers.11.self_attn.to_q_lora.down.weight",
          COMPONENT_TEXT, TEXT, ROLE_DOWN);
    finds("text_encoder.encoder.layers.11.self_attn.q_proj.lora_A.weight", COMPONENT_TEXT, TEXT,
          ROLE_DOWN);
    finds(
        "text_encoder.text_model.encoder.layers.11.self_attn.q_proj.lora_linear_layer.down.weight",
        COMPONENT_TEXT, TEXT, ROLE_DOWN);
    finds("lora_unet_mid_block_resnets_1_conv2.hada_w1_a", COMPONENT_UNET,
          "mid_block.resnets.1.conv2", ROLE_HADA_W1_A);
    finds("lora_unet_mid_block_resnets_1_conv2.lora_mid.weight", COMPONENT_UNET,
          "mid_block.resnets.1.conv2", ROLE_MID);
    finds("lora_unet_down_blocks_0_downsamplers_0_conv.lokr_t2", COMPONENT_UNET,
          "down_blocks.0.downsamplers.0.conv", ROLE_LOKR_T2);
    finds("lycoris_up_blocks_1_resnets_0_conv_shortcut.dora_scale", COMPONENT_UNET,
          "up_blocks.1.resnets.0.conv_shortcut", ROLE_MAGNITUDE);
    finds("lora_unet_conv_in.diff_b", COMPONENT_UNET, "conv_in", ROLE_DIFF_BIAS);
    finds("conv_out.diff", COMPONENT_UNET, "conv_out", ROLE_DIFF);
    misses("lora_unet_down_blocks_4_attentions_0_proj_in.alpha");
    misses("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight");
    misses("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight");
    misses("lora_te_text_model_encoder_layers_12_mlp_fc1.lora_down.weight");
    misses("lora_unet_conv_in");
    misses("lora_unet_conv_in.lora_down");
    misses(".alpha");
    misses("");
    adapter_keys_free(names.keys);
}

static void test_sd2(void **state)
{
    static const int DEPTH[] = {1, 1, 1, 0};

    (void)state;
    begin(4, DEPTH, false, true);
    add_text(COMPONENT_TEXT, 23);
    seal();
    finds("lora_te_text_model_encoder_layers_22_mlp_fc2.lora_down.weight", COMPONENT_TEXT,
          "text_model.encoder.layers.22.mlp.fc2", ROLE_DOWN);
    finds("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight", COMPONENT_UNET,
          "mid_block.attentions.0.proj_in", ROLE_UP);
    misses("lora_te_text_model_encoder_layers_23_mlp_fc2.lora_down.weight");
    adapter_keys_free(names.keys);
}

static void test_sdxl(void **state)
{
    static const int DEPTH[] = {0, 2, 10};

    (void)state;
    begin(3, DEPTH, true, false);
    add_text(COMPONENT_TEXT, 12);
    add_text(COMPONENT_TEXT_2, 32);
    add(COMPONENT_TEXT_2, "text_projection");
    seal();
    finds("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
          COMPONENT_UNET, "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", ROLE_DOWN);
    finds("lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj.lora_up.weight",
          COMPONENT_UNET, "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj", ROLE_UP);
    finds("lora_unet_middle_block_1_transformer_blocks_9_attn2_to_v.alpha", COMPONENT_UNET,
          "mid_block.attentions.0.transformer_blocks.9.attn2.to_v", ROLE_ALPHA);
    finds("lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_2.lora_down.weight",
          COMPONENT_UNET, "up_blocks.1.attentions.2.transformer_blocks.1.ff.net.2", ROLE_DOWN);
    finds("lora_unet_input_blocks_3_0_op.lora_down.weight", COMPONENT_UNET,
          "down_blocks.0.downsamplers.0.conv", ROLE_DOWN);
    finds("lora_unet_output_blocks_2_2_conv.lora_down.weight", COMPONENT_UNET,
          "up_blocks.0.upsamplers.0.conv", ROLE_DOWN);
    finds("lora_unet_input_blocks_4_0_in_layers_2.lora_down.weight", COMPONENT_UNET,
          "down_blocks.1.resnets.0.conv1", ROLE_DOWN);
    finds("lora_unet_input_blocks_4_0_emb_layers_1.lora_down.weight", COMPONENT_UNET,
          "down_blocks.1.resnets.0.time_emb_proj", ROLE_DOWN);
    finds("lora_unet_output_blocks_8_0_skip_connection.lora_down.weight", COMPONENT_UNET,
          "up_blocks.2.resnets.2.conv_shortcut", ROLE_DOWN);
    finds("lora_unet_label_emb_0_0.lora_down.weight", COMPONENT_UNET, "add_embedding.linear_1",
          ROLE_DOWN);
    finds("lora_unet_time_embed_2.lora_down.weight", COMPONENT_UNET, "time_embedding.linear_2",
          ROLE_DOWN);
    finds("lora_unet_out_2.lora_down.weight", COMPONENT_UNET, "conv_out", ROLE_DOWN);
    finds("lora_unet_input_blocks_0_0.lora_down.weight", COMPONENT_UNET, "conv_in", ROLE_DOWN);
    finds("lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight", COMPONENT_UNET,
          "down_blocks.1.attentions.0.proj_in", ROLE_DOWN);
    finds("lora_te1_text_model_encoder_layers_11_mlp_fc1.lora_down.weight", COMPONENT_TEXT,
          "text_model.encoder.layers.11.mlp.fc1", ROLE_DOWN);
    finds("lora_te2_text_model_encoder_layers_31_self_attn_out_proj.lora_down.weight",
          COMPONENT_TEXT_2, "text_model.encoder.layers.31.self_attn.out_proj", ROLE_DOWN);
    finds("text_encoder_2.text_model.encoder.layers.31.mlp.fc1.lora_A.weight", COMPONENT_TEXT_2,
          "text_model.encoder.layers.31.mlp.fc1", ROLE_DOWN);
    finds("lora_te2_text_projection.lora_up.weight", COMPONENT_TEXT_2, "text_projection", ROLE_UP);
    misses("lora_te1_text_model_encoder_layers_12_mlp_fc1.lora_down.weight");
    misses("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight");
    misses("lora_te3_text_model_encoder_layers_0_mlp_fc1.lora_down.weight");
    adapter_keys_free(names.keys);
}

/* Two names that flatten to the same are nobody's. */
static void test_ambiguous_names(void **state)
{
    (void)state;
    memset(&names, 0, sizeof(names));
    struct err err;
    assert_int_equal(adapter_keys_create(&names.keys, &err), 0);
    add(COMPONENT_UNET, "a.b_c");
    add(COMPONENT_UNET, "a_b.c");
    seal();
    misses("lora_unet_a_b_c.alpha");
    finds("unet.a.b_c.alpha", COMPONENT_UNET, "a.b_c", ROLE_ALPHA);
    finds("unet.a_b.c.alpha", COMPONENT_UNET, "a_b.c", ROLE_ALPHA);
    adapter_keys_free(names.keys);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sd1),
        cmocka_unit_test(test_sd2),
        cmocka_unit_test(test_sdxl),
        cmocka_unit_test(test_ambiguous_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
