// An option ROM for an emulated PC: enters 64-bit mode, turns AVX-512 on, loads the first disk to IMAGE and calls it.
// pc.py assembles it, and writes the number of sectors to load at SECTORS.
.set ROM, 0xd0000
.set IMAGE, 0x1000000
.set TABLES, 0x10000
.set STACK, 0xf00000
.set SECTORS, 0x3f0
.code16
.globl _start
_start:
    .byte 0x55, 0xaa, 2             // the mark of a ROM; 2 * 512 bytes
    cli
    inb $0x92, %al
    orb $2, %al
    outb %al, $0x92                 // all address lines
    lgdtl %cs:(gdt_pointer - _start)
    lidtl %cs:(no_idt - _start)     // any exception ends the machine
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $8, $(ROM + protected - _start)
.code32
protected:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    cld
    movl $TABLES, %edi              // two tables of pages: addresses are what they say, in pages of 1 GiB
    xorl %eax, %eax
    movl $2048, %ecx
    rep stosl
    movl $(TABLES + 0x1003), TABLES
    movl $0x00000083, TABLES + 0x1000
    movl $TABLES, %eax
    movl %eax, %cr3
    movl $0x40620, %eax             // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE
    movl %eax, %cr4
    movl $0xc0000080, %ecx          // EFER: long mode
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $0x80000013, %eax          // PG, ET, MP, PE
    movl %eax, %cr0
    xorl %ecx, %ecx                 // XCR0: x87, SSE, AVX, AVX-512
    xorl %edx, %edx
    movl $0xe7, %eax
    xsetbv
    ljmp $24, $(ROM + long_mode - _start)
.code64
long_mode:
    movl $STACK, %esp
    movl $IMAGE, %edi
    xorl %ebx, %ebx                 // the sector
    movl ROM + SECTORS, %ebp
1:  movw $0x1f2, %dx                // ATA: read one sector, 28 bits of address
    movb $1, %al
    outb %al, %dx
    movl %ebx, %eax
    incl %edx
    outb %al, %dx
    shrl $8, %eax
    incl %edx
    outb %al, %dx
    shrl $8, %eax
    incl %edx
    outb %al, %dx
    shrl $8, %eax
    orb $0xe0, %al
    incl %edx
    outb %al, %dx
    incl %edx
    movb $0x20, %al
    outb %al, %dx
2:  inb %dx, %al
    testb $8, %al
    jz 2b
    movw $0x1f0, %dx
    movl $256, %ecx
    rep insw
    incl %ebx
    cmpl %ebp, %ebx
    jb 1b
    movl $IMAGE, %eax
    call *%rax
    leaq message(%rip), %rsi        // Bochs ends when it reads so
    movw $0x8900, %dx
    movl $8, %ecx
    rep outsb
3:  hlt
    jmp 3b
message: .ascii "Shutdown"
no_idt: .word 0
    .long 0
.balign 8
gdt: .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff, 0x00af9a000000ffff
gdt_pointer: .word 31
    .long ROM + gdt - _start
