/* Classify one image with a network compiled by xnorc: no Python, no TVM, no heap.
 *
 *     usage: classify IMAGE.bin      (784 little-endian float32 values, as the network was trained on)
 *
 * Build (see README.md in this folder): the package's lib/ folder has mnist.h, xnorc.h and libmnist.a.
 */
#include <stdio.h>

#include "mnist.h"

static _Alignas(XNORC_ARENA_ALIGN) unsigned char arena[MNIST_ARENA_BYTES];
static _Alignas(16) float image[MNIST_INPUT0_BYTES / sizeof(float)];
static _Alignas(16) float logits[MNIST_OUTPUT0_BYTES / sizeof(float)];

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s IMAGE.bin\n", argv[0]);
        return 2;
    }
    FILE *file = fopen(argv[1], "rb");
    if (!file || fread(image, sizeof image, 1, file) != 1) {
        fprintf(stderr, "%s: cannot read %zu bytes\n", argv[1], sizeof image);
        return 2;
    }
    fclose(file);

    const void *inputs[] = {image};
    void *outputs[] = {logits};
    xnorc_status status = xnorc_run(mnist_model(), arena, sizeof arena, inputs, outputs);
    if (status != XNORC_OK) {
        fprintf(stderr, "%s\n", xnorc_status_text(status));
        return 1;
    }

    int best = 0;
    for (int i = 0; i < (int)(sizeof logits / sizeof *logits); i++) {
        printf("%d: %9.5f\n", i, (double)logits[i]);
        if (logits[i] > logits[best]) best = i;
    }
    printf("digit %d\n", best);
    return 0;
}
