/*
 * Preloaded into everything in the first-level VM, has it believe in two CPUs where there is one: the runtime gives a VM
 * no more vCPUs than its host has CPUs, and with two emulated ones what is nested hangs. KVM runs two vCPUs on one CPU well.
 * Rust's available_parallelism() asks sched_getaffinity(2).
 */
#define _GNU_SOURCE
#include <sched.h>
#include <string.h>

int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set)
{
	(void)pid;
	memset(set, 0, size);
	CPU_SET_S(0, size, set);
	CPU_SET_S(1, size, set);
	return 0;
}
