/* The bottom of a program without an operating system: arguments come with it, outputs go to Bochs' port 0xe9. */
#include <stddef.h>
#include <stdint.h>

int main(void);
extern uint8_t request[], request_end[];
static uint8_t *room = (uint8_t *)0x8000000, *next;

void *memcpy(void *to, const void *from, size_t bytes) {
    void *given = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes)::"memory");
    return given;
}

void *memset(void *to, int value, size_t bytes) {
    void *given = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(value) : "memory");
    return given;
}

static void send(const void *from, size_t bytes) {
    __asm__ volatile("rep outsb" : "+S"(from), "+c"(bytes) : "d"((uint16_t)0xe9) : "memory");
}

static void *take_room(size_t bytes) {
    void *given = room;
    room += (bytes + 127) / 64 * 64;
    return given;
}

static void give_room(void *p) { (void)p; }

static void *take(size_t bytes) {
    void *given = memcpy(take_room(bytes), next, bytes);
    next += bytes;
    return given;
}

static void give(const void *from, size_t bytes) { send(from, bytes); }

/* Whether the machine does right what Bochs 3.0 gets wrong: shifting a mask by 15, and the distance of a byte to insert. */
static int is_right(void) {
    uint8_t bytes[16] = {[5] = 55}, got[16];
    uint32_t mask = 1;
    __asm__ volatile("kmovw %0, %%k1\n kshiftlw $15, %%k1, %%k1\n kshiftrw $15, %%k1, %%k1\n kmovw %%k1, %0"
                     : "+r"(mask)::"k1");
    __asm__ volatile("vpxorq %%xmm16, %%xmm16, %%xmm16\n vpinsrb $0, 5(%1), %%xmm16, %%xmm16\n vmovdqu64 %%xmm16, %0"
                     : "=m"(got) : "r"(bytes), "m"(bytes) : "xmm16");
    return mask == 1 && got[0] == 55;
}

__attribute__((section(".text.first"))) void image(void) {
    next = request;
    if (!is_right()) send("<wrong>", 7);
    send("<outputs>", 9);
    if (main() || next != request_end) send("<failed>", 8);
    send("</outputs>", 10);
}
