/*
 * What of libext2fs is used, as functions of plain numbers, so that its large structures, whose layout changes with its
 * version, stay on this side.
 *
 * All return 0 or an error code: errno where it is small, otherwise one of the library's own (weightd_ext4_message).
 * Numbers that come from a disk are checked by the callers in Rust before they come here.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <ext2fs/ext2fs.h>

#define EXTENT_ROOT_BYTES 60

/* The library reports some misuse by com_err() to stderr, which is not its to write to. */
static void silent(const char *who, errcode_t code, const char *format, va_list arguments)
{
	(void)who, (void)code, (void)format, (void)arguments;
}

/* Once, before all else. */
void weightd_ext4_prepare(void)
{
	initialize_ext2_error_table();
	set_com_err_hook(silent);
}

/* The library's words for one of its codes, which last for ever; a null pointer for codes of others. */
const char *weightd_ext4_message(long code)
{
	/* For what it does not know error_message() writes into a buffer that all threads share. */
	return code >= EXT2_ET_BASE && code < EXT2_ET_BASE + 256 ? error_message(code) : NULL;
}

static void describe(struct ext2_super_block *super)
{
	super->s_rev_level = EXT2_DYNAMIC_REV;
	super->s_log_block_size = 2;
	super->s_log_cluster_size = 2;
	super->s_inode_size = 256;
	super->s_desc_size = EXT2_MIN_DESC_SIZE_64BIT;
	super->s_errors = EXT2_ERRORS_CONTINUE;
	super->s_max_mnt_count = -1;
	super->s_checksum_type = EXT2_CRC32C_CHKSUM;
	ext2fs_set_feature_sparse_super2(super);
	ext2fs_set_feature_filetype(super);
	ext2fs_set_feature_extents(super);
	ext2fs_set_feature_64bit(super);
	ext2fs_set_feature_flex_bg(super);
	ext2fs_set_feature_sparse_super(super);
	ext2fs_set_feature_large_file(super);
	ext2fs_set_feature_huge_file(super);
	ext2fs_set_feature_dir_nlink(super);
	ext2fs_set_feature_extra_isize(super);
	ext2fs_set_feature_metadata_csum(super);
}

/* What the library takes from the clock, the machine and chance is given instead. */
static void settle(ext2_filsys fs, uint32_t time, const uint8_t *uuid, const uint8_t *hash_seed, const uint8_t *label)
{
	struct ext2_super_block *super = fs->super;

	fs->now = time;
	super->s_mkfs_time = super->s_lastcheck = super->s_wtime = time;
	super->s_mkfs_time_hi = super->s_lastcheck_hi = super->s_wtime_hi = 0;
	super->s_checkinterval = 0;
	super->s_creator_os = EXT2_OS_LINUX;
	super->s_checksum_type = EXT2_CRC32C_CHKSUM;
	super->s_def_hash_version = EXT2_HASH_HALF_MD4;
	super->s_flags = EXT2_FLAGS_UNSIGNED_HASH;
	memcpy(super->s_uuid, uuid, sizeof(super->s_uuid));
	memcpy(super->s_hash_seed, hash_seed, sizeof(super->s_hash_seed));
	memcpy(super->s_volume_name, label, sizeof(super->s_volume_name));
	ext2fs_init_csum_seed(fs);
}

/* The file is all zeros, and so are its inode tables: nobody need clear them. */
static void mark_tables_clear(ext2_filsys fs)
{
	for (dgrp_t group = 0; group < fs->group_desc_count; group++) {
		ext2fs_bg_flags_set(fs, group, EXT2_BG_INODE_ZEROED);
		ext2fs_group_desc_csum_set(fs, group);
	}
}

/* Marks the inodes below the first free one, which are the file system's own, as used. */
static void claim_own_inodes(ext2_filsys fs)
{
	for (ext2_ino_t inode = 1; inode < EXT2_FIRST_INODE(fs->super); inode++)
		ext2fs_inode_alloc_stats2(fs, inode, +1, inode == EXT2_ROOT_INO);
}

/* Begins a file system in a file of zeros. Arrays: 16 bytes each. */
long weightd_ext4_create(const char *path, uint64_t blocks, uint32_t inodes, uint8_t log_groups_per_flex,
			 uint32_t time, const uint8_t *uuid, const uint8_t *hash_seed, const uint8_t *label,
			 ext2_filsys *out)
{
	struct ext2_super_block wanted;
	ext2_filsys fs;
	errcode_t code;

	memset(&wanted, 0, sizeof(wanted));
	describe(&wanted);
	ext2fs_blocks_count_set(&wanted, blocks);
	wanted.s_inodes_count = inodes;
	wanted.s_log_groups_per_flex = log_groups_per_flex;
	code = ext2fs_initialize(path, EXT2_FLAG_64BITS, &wanted, unix_io_manager, &fs);
	if (code)
		return code;
	settle(fs, time, uuid, hash_seed, label);
	code = ext2fs_allocate_tables(fs);
	if (code) {
		ext2fs_free(fs);
		return code;
	}
	mark_tables_clear(fs);
	claim_own_inodes(fs);
	*out = fs;
	return 0;
}

/* Length of the file system in blocks: it leaves out a last group that is too short to be one. */
uint64_t weightd_ext4_blocks(ext2_filsys fs)
{
	return ext2fs_blocks_count(fs->super);
}

uint32_t weightd_ext4_block_bytes(ext2_filsys fs)
{
	return fs->blocksize;
}

uint32_t weightd_ext4_inodes(ext2_filsys fs)
{
	return fs->super->s_inodes_count;
}

/* First block behind all bitmaps and inode tables. */
uint64_t weightd_ext4_tables_end(ext2_filsys fs)
{
	blk64_t end = 0;

	for (dgrp_t group = 0; group < fs->group_desc_count; group++) {
		blk64_t ends[] = {
			ext2fs_block_bitmap_loc(fs, group) + 1,
			ext2fs_inode_bitmap_loc(fs, group) + 1,
			ext2fs_inode_table_loc(fs, group) + fs->inode_blocks_per_group,
		};
		for (int i = 0; i < 3; i++)
			end = ends[i] > end ? ends[i] : end;
	}
	return end;
}

/* Marks blocks as used. EEXIST if any of them already is. */
long weightd_ext4_claim_blocks(ext2_filsys fs, uint64_t first, uint64_t count)
{
	while (count > 0) {
		/* The library counts by 32 bits. */
		blk_t part = count > 1u << 30 ? 1u << 30 : (blk_t)count;

		if (!ext2fs_test_block_bitmap_range2(fs->block_map, first, part))
			return EEXIST;
		ext2fs_block_alloc_stats_range(fs, first, part, +1);
		first += part;
		count -= part;
	}
	return 0;
}

/* Marks an inode as used. */
void weightd_ext4_claim_inode(ext2_filsys fs, uint32_t inode, int is_directory)
{
	ext2fs_inode_alloc_stats2(fs, inode, +1, is_directory);
}

/* Writes an inode that is mapped by extents; `root` are the 60 bytes of their root. */
long weightd_ext4_write_inode(ext2_filsys fs, uint32_t number, uint16_t mode, uint16_t links, uint64_t bytes,
			      uint64_t sectors, uint32_t time, const uint8_t *root)
{
	struct ext2_inode_large inode;
	/* The old fields are signed: the two lowest bits of the new ones carry on where they turn negative, in 2038. */
	uint32_t epoch = time >> 31;

	memset(&inode, 0, sizeof(inode));
	inode.i_mode = mode;
	inode.i_links_count = links;
	inode.i_size = (uint32_t)bytes;
	inode.i_size_high = (uint32_t)(bytes >> 32);
	inode.i_blocks = (uint32_t)sectors;
	inode.osd2.linux2.l_i_blocks_hi = (uint16_t)(sectors >> 32);
	inode.i_flags = EXT4_EXTENTS_FL;
	inode.i_extra_isize = sizeof(inode) - EXT2_GOOD_OLD_INODE_SIZE;
	inode.i_atime = inode.i_ctime = inode.i_mtime = inode.i_crtime = time;
	inode.i_atime_extra = inode.i_ctime_extra = inode.i_mtime_extra = inode.i_crtime_extra = epoch;
	memcpy(inode.i_block, root, EXTENT_ROOT_BYTES);
	return ext2fs_write_inode_full(fs, number, (struct ext2_inode *)&inode, sizeof(inode));
}

/* Changes how many names an inode has. */
long weightd_ext4_set_links(ext2_filsys fs, uint32_t number, uint16_t links)
{
	struct ext2_inode inode;
	errcode_t code = ext2fs_read_inode(fs, number, &inode);

	if (code)
		return code;
	inode.i_links_count = links;
	return ext2fs_write_inode(fs, number, &inode);
}

/* Writes a block of an inode's extent tree, and into its tail the checksum. */
long weightd_ext4_write_extent_block(ext2_filsys fs, uint32_t inode, uint64_t block, uint8_t *bytes)
{
	errcode_t code = ext2fs_extent_block_csum_set(fs, inode, (struct ext3_extent_header *)bytes);

	return code ? code : io_channel_write_blk64(fs->io, block, 1, bytes);
}

/* Writes a block of a directory, whose last 12 bytes are left for the checksum. */
long weightd_ext4_write_directory_block(ext2_filsys fs, uint32_t inode, uint64_t block, uint8_t *bytes)
{
	ext2fs_initialize_dirent_tail(fs, EXT2_DIRENT_TAIL(bytes, fs->blocksize));
	return ext2fs_write_dir_block4(fs, block, bytes, 0, inode);
}

/* Writes all that is still in memory. Not ext2fs_close(), which would count what was written. */
long weightd_ext4_flush(ext2_filsys fs)
{
	ext2fs_mark_super_dirty(fs);
	return ext2fs_flush(fs);
}

/* Forgets a file system; what was not flushed is lost. */
void weightd_ext4_free(ext2_filsys fs)
{
	ext2fs_free(fs);
}

/* Opens a file system for reading, checksums and all. */
long weightd_ext4_open(const char *path, ext2_filsys *out)
{
	return ext2fs_open2(path, NULL, EXT2_FLAG_64BITS, 0, 0, unix_io_manager, out);
}

/*
 * Checks the group descriptors: 0, or 1 if a checksum is wrong, or 2 if an inode table would not lie on the disk. The
 * library looks at them only when it checks a whole disk.
 */
int weightd_ext4_check_groups(ext2_filsys fs)
{
	blk64_t blocks = ext2fs_blocks_count(fs->super);

	for (dgrp_t group = 0; group < fs->group_desc_count; group++) {
		blk64_t table = ext2fs_inode_table_loc(fs, group);

		if (!ext2fs_group_desc_csum_verify(fs, group))
			return 1;
		if (table == 0 || table >= blocks || fs->inode_blocks_per_group > blocks - table)
			return 2;
	}
	return 0;
}

/* Whether all bytes from `start` to in front of `end` are the same. */
static int is_all(const uint8_t *bytes, size_t start, size_t end, uint8_t byte)
{
	while (start < end && bytes[start] == byte)
		start++;
	return start == end;
}

/* Checks the bitmaps of a group, as far as it has them, by way of a block of memory. Behind a bitmap there are ones. */
long weightd_ext4_check_bitmaps(ext2_filsys fs, uint32_t group, uint8_t *block, int *is_wrong)
{
	size_t block_bytes = fs->super->s_clusters_per_group / 8, inode_bytes = fs->super->s_inodes_per_group / 8;
	errcode_t code;

	if (block_bytes > fs->blocksize || inode_bytes > fs->blocksize)
		return EXT2_ET_CORRUPT_SUPERBLOCK;
	*is_wrong = 0;
	if (!ext2fs_bg_flags_test(fs, group, EXT2_BG_BLOCK_UNINIT)) {
		code = io_channel_read_blk64(fs->io, ext2fs_block_bitmap_loc(fs, group), 1, block);
		if (code)
			return code;
		*is_wrong |= !ext2fs_block_bitmap_csum_verify(fs, group, (char *)block, block_bytes);
		*is_wrong |= !is_all(block, block_bytes, fs->blocksize, 0xff);
	}
	if (!ext2fs_bg_flags_test(fs, group, EXT2_BG_INODE_UNINIT)) {
		code = io_channel_read_blk64(fs->io, ext2fs_inode_bitmap_loc(fs, group), 1, block);
		if (code)
			return code;
		*is_wrong |= !ext2fs_inode_bitmap_csum_verify(fs, group, (char *)block, inode_bytes);
		*is_wrong |= !is_all(block, inode_bytes, fs->blocksize, 0xff);
	}
	return 0;
}

uint32_t weightd_ext4_groups(ext2_filsys fs)
{
	return fs->group_desc_count;
}

/*
 * Checks an inode that the file system may have for itself, by way of a block of memory. Of one that is not in use the
 * library looks at the old half alone, and takes it for sound when that is empty.
 */
long weightd_ext4_check_own_inode(ext2_filsys fs, uint32_t number, uint8_t *block, int *is_wrong)
{
	size_t bytes = EXT2_INODE_SIZE(fs->super);
	errcode_t code = ext2fs_read_inode_full(fs, number, (struct ext2_inode *)block, bytes);

	if (code)
		return code;
	*is_wrong = is_all(block, 0, EXT2_GOOD_OLD_INODE_SIZE, 0) && !is_all(block, 0, bytes, 0);
	return 0;
}

/* Reads an inode; `root` gets the 60 bytes in which its extents, if it has any, begin. */
long weightd_ext4_read_inode(ext2_filsys fs, uint32_t number, uint16_t *mode, uint16_t *links, uint32_t *flags,
			     uint64_t *bytes, uint8_t *root)
{
	struct ext2_inode inode;
	errcode_t code = ext2fs_read_inode(fs, number, &inode);

	if (code)
		return code;
	*mode = inode.i_mode;
	*links = inode.i_links_count;
	*flags = inode.i_flags;
	*bytes = EXT2_I_SIZE(&inode);
	memcpy(root, inode.i_block, EXTENT_ROOT_BYTES);
	return 0;
}

/* Reads one block of the disk. */
long weightd_ext4_read_block(ext2_filsys fs, uint64_t block, uint8_t *bytes)
{
	return io_channel_read_blk64(fs->io, block, 1, bytes);
}

/* Reads one block of a directory and checks it. */
long weightd_ext4_read_directory_block(ext2_filsys fs, uint32_t inode, uint64_t block, uint8_t *bytes)
{
	return ext2fs_read_dir_block4(fs, block, bytes, 0, inode);
}

/* Checks a block of an extent tree, of whose header it is already known that it fits into the block. */
long weightd_ext4_check_extent_block(ext2_filsys fs, uint32_t inode, uint8_t *bytes)
{
	int is_right = ext2fs_extent_block_csum_verify(fs, inode, (struct ext3_extent_header *)bytes);

	return is_right ? 0 : EXT2_ET_EXTENT_CSUM_INVALID;
}
